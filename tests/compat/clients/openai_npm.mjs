// openai of npm: a chat, its stream, the stream helper, Responses, embeddings and a typed error.

import OpenAI from "openai";

import { UNKNOWN_MODEL, ask, main, tokens, versionOf } from "./observing.mjs";

const client = new OpenAI({ baseURL: `${ask.url}/v1`, apiKey: ask.key, maxRetries: 0 });
const chat = { model: ask.model, messages: ask.messages, max_tokens: ask.maxTokens, temperature: 0 };
const response = { model: ask.model, input: ask.prompt, max_output_tokens: ask.maxTokens, temperature: 0 };
const used = ({ prompt_tokens, completion_tokens }) => tokens(prompt_tokens, completion_tokens);

await main(versionOf("openai"), async (add) => {
  const whole = await client.chat.completions.create(chat);
  const [{ message, finish_reason }] = whole.choices;
  add("chat", "chat.completions.create", { text: message.content, end: finish_reason, tokens: used(whole.usage) });

  let text = "";
  let end, usage;
  for await (const chunk of await client.chat.completions.create({ ...chat, stream: true, stream_options: { include_usage: true } })) {
    for (const choice of chunk.choices) {
      text += choice.delta.content ?? "";
      end = choice.finish_reason;
    }
    usage = chunk.usage;
  }
  add("chat", "chat.completions.create, `stream`", { text, end, tokens: used(usage) });

  text = "";
  const helper = client.chat.completions.stream({ ...chat, stop: [ask.stop] });
  helper.on("content", (delta) => (text += delta));
  const final = await helper.finalChatCompletion();
  add("stopped chat", "chat.completions.stream, `stop`", { text, end: final.choices[0].finish_reason });

  text = "";
  for await (const event of await client.responses.create({ ...response, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
    if (event.type === "response.incomplete" || event.type === "response.completed") {
      const { status, usage: counts } = event.response;
      add("response", "responses.create, `stream`", { text, end: status, tokens: tokens(counts.input_tokens, counts.output_tokens) });
    }
  }

  const { data } = await client.embeddings.create({ model: ask.model, input: ask.prompt });
  add("embedding", "embeddings.create", { vector: data[0].embedding.map((number) => Number(number.toFixed(5))) });

  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  add("models", "models.list", { names });

  try {
    await client.chat.completions.create({ ...chat, model: UNKNOWN_MODEL });
  } catch (error) {
    if (!(error instanceof OpenAI.NotFoundError)) throw error;
    add("unknown model", "NotFoundError", { status: error.status, message: error.message, code: error.code });
  }
});
