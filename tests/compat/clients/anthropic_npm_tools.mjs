// @anthropic-ai/sdk of npm: tool calls, its tool runner, structured output and thinking.

import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";

import { ask, callsOf, main, tokens, user, versionOf } from "./observing.mjs";

const at = (url) => new Anthropic({ baseURL: url, apiKey: ask.key, maxRetries: 0 });
const client = at(ask.url);
const thinker = at(ask.thinker);
const Product = z.object({ product: z.string(), grams: z.int() });

const common = { model: ask.model, max_tokens: ask.toolTokens, temperature: 0 };
const called = { ...common, messages: user(ask.toolPrompt) };
const tool = ({ name, description, parameters }, more) => ({ name, description, input_schema: parameters, ...more });
const onlyOne = { type: "any", disable_parallel_tool_use: true };

const textOf = ({ content }) => content.map((block) => block.text).join("");
const ended = ({ stop_reason, usage }) => ({
  end: stop_reason,
  tokens: tokens(usage.input_tokens + (usage.cache_read_input_tokens ?? 0), usage.output_tokens),
});
const calls = (message) => ({ calls: callsOf(message.content.map(({ id, name, input }) => [id, name, input])), ...ended(message) });

async function tools(add) {
  const first = await client.messages.create({ ...called, tools: [tool(ask.tool, { strict: true })], tool_choice: onlyOne });
  add("message call", "messages.create, a strict tool", calls(first));
  const stream = client.messages.stream({ ...called, tools: [tool(ask.freeTool)], tool_choice: { type: "any" } });
  const inputs = [];
  stream.on("contentBlock", (block) => inputs.push(block.input));
  const final = await stream.finalMessage();
  if (JSON.stringify(inputs) !== JSON.stringify(final.content.map(({ input }) => input))) throw new Error("the events differ");
  add("message calls", "messages.stream, two calls", calls(final));

  const result = { type: "tool_result", tool_use_id: first.content[0].id, content: ask.toolResult };
  const messages = [...called.messages, { role: "assistant", content: first.content }, { role: "user", content: [result] }];
  const answer = await client.messages.create({ ...common, messages, tools: [tool(ask.tool)], tool_choice: { type: "none" } });
  add("message result", "messages.create, a tool's result", { text: textOf(answer), ...ended(answer) });
}

/** It calls the function and sends the result. That the model answers then, and calls no more, it is told by us. */
async function toolRunner(add, stream) {
  const done = [];
  const weather = betaZodTool({
    name: ask.tool.name,
    description: ask.tool.description,
    inputSchema: z.object({ city: z.literal("Paris"), unit: z.literal("C") }),
    run: (given) => {
      done.push(given);
      return ask.toolResult;
    },
  });
  const runner = client.beta.messages.toolRunner({ ...called, tools: [weather], tool_choice: onlyOne, stream });
  const turns = [];
  for await (const turn of runner) {
    const message = stream ? await turn.finalMessage() : turn;
    turns.push(message);
    const results = await runner.generateToolResponse();
    if (!results) break;
    const both = [{ role: "assistant", content: message.content }, results];
    runner.setMessagesParams((params) => ({ ...params, messages: [...params.messages, ...both], tool_choice: { type: "none" } }));
  }
  if (turns.length !== 2 || done.length !== 1) throw new Error(`the runner has ${turns.length} turns and ran ${done.length} tools`);
  const call = stream ? "beta.messages.toolRunner, `stream`" : "beta.messages.toolRunner";
  const [first, last] = turns;
  add("message call", call, { calls: calls(first).calls, end: first.stop_reason });
  add("message result", `${call}, the result`, { text: textOf(last), ...ended(last) });
}

async function objects(add) {
  const asked = { ...common, messages: user(ask.objectPrompt), output_config: { format: zodOutputFormat(Product) } };
  const parsed = await client.messages.parse(asked);
  add("message object", "messages.parse", { value: parsed.parsed_output, ...ended(parsed) });
  const final = await client.messages.stream(asked).finalMessage();
  add("message object", "messages.stream, `output_config`", { value: final.parsed_output, ...ended(final) });
}

async function thinking(add) {
  const asked = { model: ask.model, messages: ask.dialogue, max_tokens: ask.dialogueTokens, temperature: 0, thinking: { type: "adaptive" } };
  const facts = (message) => {
    const [thought, text] = message.content;
    if (!thought.signature) throw new Error("the thinking block has no signature");
    return { reasoning: thought.thinking, text: text.text, ...ended(message) };
  };
  add("message reasoning", "messages.create, `thinking`", facts(await thinker.messages.create(asked)));
  const stream = thinker.messages.stream(asked);
  let pieces = "";
  stream.on("thinking", (delta) => (pieces += delta));
  const final = await stream.finalMessage();
  if (final.content[0].thinking !== pieces) throw new Error("the events of thinking differ");
  add("message reasoning", "messages.stream, `thinking`", facts(final));
}

await main(versionOf("@anthropic-ai/sdk"), async (add) => {
  await tools(add);
  await toolRunner(add, false);
  await toolRunner(add, true);
  await objects(add);
  await thinking(add);
});
