// openai of npm: tool calls, runTools, structured output and reasoning, of chats and Responses.

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { ask, callsOf, main, tokens, user, versionOf } from "./observing.mjs";

const at = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: ask.key, maxRetries: 0 });
const client = at(ask.url);
const thinker = at(ask.thinker);
const Product = z.object({ product: z.string(), grams: z.int() });

const common = { model: ask.model, max_tokens: ask.toolTokens, temperature: 0 };
const called = { ...common, messages: user(ask.toolPrompt), tool_choice: "required" };
const one = { tools: [{ type: "function", function: ask.tool }], parallel_tool_calls: false };
const many = { tools: [{ type: "function", function: ask.freeTool }] };
const usage = { stream_options: { include_usage: true } };

const ended = (completion) => ({
  end: completion.choices[0].finish_reason,
  tokens: tokens(completion.usage.prompt_tokens, completion.usage.completion_tokens),
});
const calls = (completion) => ({
  calls: callsOf(completion.choices[0].message.tool_calls.map((call) => [call.id, call.function.name, call.function.arguments])),
  ...ended(completion),
});
const endedResponse = ({ status, usage: { input_tokens, output_tokens } }) => ({ end: status, tokens: tokens(input_tokens, output_tokens) });
const callsOfResponse = (response) => ({
  calls: callsOf(response.output.map((item) => [item.call_id, item.name, item.arguments])),
  ...endedResponse(response),
});

async function chats(add) {
  add("call", "chat.completions.create, `tools`", calls(await client.chat.completions.create({ ...called, ...one })));
  const stream = client.chat.completions.stream({ ...called, ...many, ...usage });
  const indexes = [];
  stream.on("tool_calls.function.arguments.done", ({ index }) => indexes.push(index));
  const facts = calls(await stream.finalChatCompletion());
  if (indexes.join() !== [...facts.calls.keys()].join()) throw new Error(`the events' indexes are ${indexes}`);
  add("calls", "chat.completions.stream, two calls", facts);

  const asked = { ...common, messages: user(ask.objectPrompt), response_format: zodResponseFormat(Product, "Product") };
  const parsed = await client.chat.completions.parse(asked);
  add("object", "chat.completions.parse", { value: parsed.choices[0].message.parsed, ...ended(parsed) });
  const final = await client.chat.completions.stream({ ...asked, ...usage }).finalChatCompletion();
  add("object", "chat.completions.stream, `response_format`", { value: final.choices[0].message.parsed, ...ended(final) });
}

/** The model has to call in each turn: the second one shows that the first one's result was taken. */
async function runTools(add, more) {
  const done = [];
  const weather = (given) => {
    done.push(given);
    return ask.toolResult;
  };
  const tool = { type: "function", function: { ...ask.tool, parse: JSON.parse, function: weather } };
  const asked = { ...called, ...more, tools: [tool], parallel_tool_calls: false };
  const runner = client.chat.completions.runTools(asked, { maxChatCompletions: 2 });
  const results = [];
  runner.on("functionToolCallResult", (content) => results.push(content));
  const last = await runner.finalChatCompletion();
  const call = more.stream ? "chat.completions.runTools, `stream`" : "chat.completions.runTools";
  const turns = runner.allChatCompletions();
  if (turns.length !== 2 || results.join() !== [ask.toolResult, ask.toolResult].join()) {
    throw new Error(`runTools has ${turns.length} turns and the results ${results}`);
  }
  add("call", call, calls(turns[0]));
  const { end } = ended(last);
  add("call", `${call}, after the result`, { calls: done.slice(1).map((given) => [ask.tool.name, given]), end });
}

async function responses(add) {
  const limits = { model: ask.model, max_output_tokens: ask.toolTokens, temperature: 0 };
  const request = { ...limits, input: user(ask.toolPrompt), tool_choice: "required" };
  const tool = { type: "function", ...ask.tool, strict: true };
  const whole = await client.responses.create({ ...request, tools: [tool], parallel_tool_calls: false });
  add("response call", "responses.create, a strict tool", callsOfResponse(whole));
  const stream = client.responses.stream({ ...request, tools: [{ type: "function", ...ask.freeTool, strict: false }] });
  add("response calls", "responses.stream, two calls", callsOfResponse(await stream.finalResponse()));

  const asked = { ...limits, input: ask.objectPrompt, text: { format: zodTextFormat(Product, "Product") } };
  const parsed = await client.responses.parse(asked);
  add("response object", "responses.parse", { value: parsed.output_parsed, ...endedResponse(parsed) });
  const final = await client.responses.stream(asked).finalResponse();
  add("response object", "responses.stream, `text.format`", { value: final.output_parsed, ...endedResponse(final) });
}

async function reasoning(add) {
  const asked = { model: ask.model, messages: ask.dialogue, max_tokens: ask.dialogueTokens, temperature: 0 };
  const thought = (completion) => {
    const { reasoning_content, content } = completion.choices[0].message;
    return { reasoning: reasoning_content, text: content, ...ended(completion) };
  };
  add("reasoning", "chat.completions.create, reasoning", thought(await thinker.chat.completions.create(asked)));
  // Its helper keeps only the last piece of a field that it does not know.
  let reasoning = "";
  const helper = thinker.chat.completions.stream({ ...asked, ...usage });
  helper.on("chunk", ({ choices }) => choices.forEach(({ delta }) => (reasoning += delta.reasoning_content ?? "")));
  const completion = await helper.finalChatCompletion();
  add("reasoning", "chat.completions.stream, reasoning of its chunks", { ...thought(completion), reasoning });

  const stream = thinker.responses.stream({ model: ask.model, input: ask.dialogue, max_output_tokens: ask.dialogueTokens, temperature: 0 });
  let pieces = "";
  stream.on("response.reasoning_text.delta", ({ delta }) => (pieces += delta));
  const final = await stream.finalResponse();
  const [item] = final.output;
  if (item.content[0].text !== pieces) throw new Error("the events of reasoning differ");
  add("response reasoning", "responses.stream, reasoning", { reasoning: pieces, text: final.output_text, ...endedResponse(final) });
}

await main(versionOf("openai"), async (add) => {
  await chats(add);
  await runTools(add, {});
  await runTools(add, { stream: true, ...usage });
  await responses(add);
  await reasoning(add);
});
