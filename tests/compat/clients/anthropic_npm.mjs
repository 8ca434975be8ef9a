// @anthropic-ai/sdk of npm: a message, its stream, the stream helper, the count of tokens and a typed error.

import Anthropic from "@anthropic-ai/sdk";

import { UNKNOWN_MODEL, ask, main, tokens, versionOf } from "./observing.mjs";

const client = new Anthropic({ baseURL: ask.url, apiKey: ask.key, maxRetries: 0 });
const request = { model: ask.model, messages: ask.messages, max_tokens: ask.maxTokens, temperature: 0 };
const facts = ({ content, stop_reason, usage }) => ({
  text: content.map((block) => block.text).join(""),
  end: stop_reason,
  tokens: tokens(usage.input_tokens + usage.cache_read_input_tokens, usage.output_tokens),
});

await main(versionOf("@anthropic-ai/sdk"), async (add) => {
  add("message", "messages.create", facts(await client.messages.create(request)));

  let text = "";
  let end;
  for await (const event of await client.messages.create({ ...request, stream: true })) {
    if (event.type === "content_block_delta") text += event.delta.text;
    if (event.type === "message_delta") end = event.delta.stop_reason;
  }
  add("message", "messages.create, `stream`", { text, end });

  const final = await client.messages.stream({ ...request, stop_sequences: [ask.stop] }).finalMessage();
  add("stopped message", "messages.stream, `stop_sequences`", facts(final));

  const count = await client.messages.countTokens({ model: ask.model, messages: ask.messages });
  add("token count", "messages.countTokens", { count: count.input_tokens });

  try {
    await client.messages.create({ ...request, model: UNKNOWN_MODEL });
  } catch (error) {
    if (!(error instanceof Anthropic.NotFoundError)) throw error;
    add("unknown model", "NotFoundError", { status: error.status, message: error.message });
  }
});
