"""OpenAI's protocol: routes, request schemas, and the JSON of answers and frames."""
