// The Vercel AI SDK with its provider for servers that speak OpenAI's protocol: generateText and streamText.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, streamText } from "ai";

import { UNKNOWN_MODEL, ask, main, tokens, versionOf } from "./observing.mjs";

const provider = createOpenAICompatible({ name: "rbee", baseURL: `${ask.url}/v1`, apiKey: ask.key, includeUsage: true });
const request = { prompt: ask.prompt, maxOutputTokens: ask.maxTokens, temperature: 0, maxRetries: 0 };
const used = ({ inputTokens, outputTokens }) => tokens(inputTokens, outputTokens);

await main(`${versionOf("ai")}, provider ${versionOf("@ai-sdk/openai-compatible")}`, async (add) => {
  const whole = await generateText({ ...request, model: provider(ask.model) });
  add("chat", "generateText", { text: whole.text, end: whole.finishReason, tokens: used(whole.usage) });

  const stream = streamText({ ...request, model: provider(ask.model) });
  let text = "";
  for await (const delta of stream.textStream) text += delta;
  add("chat", "streamText", { text, end: await stream.finishReason, tokens: used(await stream.usage) });

  const stopped = streamText({ ...request, model: provider(ask.model), stopSequences: [ask.stop] });
  add("stopped chat", "streamText, `stopSequences`", { text: await stopped.text, end: await stopped.finishReason });

  try {
    await generateText({ ...request, model: provider(UNKNOWN_MODEL) });
  } catch (error) {
    if (!APICallError.isInstance(error)) throw error;
    add("unknown model", "APICallError", { status: error.statusCode, message: error.message });
  }
});
