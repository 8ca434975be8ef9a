"""OpenAI's Responses protocol, without state: its route, input items, typed events and the response object."""
