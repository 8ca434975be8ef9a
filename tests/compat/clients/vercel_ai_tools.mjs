// The Vercel AI SDK: tools and their steps, objects, and reasoning.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateObject, generateText, isStepCount, jsonSchema, streamObject, streamText, tool } from "ai";
import { z } from "zod";

import { ask, callsOf, main, tokens, versionOf } from "./observing.mjs";

// The provider has to be told that the server enforces schemas.
const at = (url) =>
  createOpenAICompatible({ name: "rbee", baseURL: `${url}/v1`, apiKey: ask.key, includeUsage: true, supportsStructuredOutputs: true })(ask.model);
const model = at(ask.url);
const thinker = at(ask.thinker);
const Product = z.object({ product: z.string(), grams: z.int() });

const common = { model, maxOutputTokens: ask.toolTokens, temperature: 0, maxRetries: 0 };
const used = ({ inputTokens, outputTokens }) => tokens(inputTokens, outputTokens);
const calls = (toolCalls) => callsOf(toolCalls.map(({ toolCallId, toolName, input }) => [toolCallId, toolName, input]));

/** A first step that has to call, and a second one that answers. */
async function tools(add) {
  const done = [];
  const weather = tool({
    description: ask.tool.description,
    inputSchema: z.object({ city: z.literal("Paris"), unit: z.literal("C") }),
    execute: (given) => {
      done.push(given);
      return ask.toolResult;
    },
  });
  const asked = {
    ...common,
    prompt: ask.toolPrompt,
    tools: { [ask.tool.name]: weather },
    providerOptions: { rbee: { parallel_tool_calls: false } },
    stopWhen: isStepCount(2),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? "required" : "none" }),
  };
  for (const [name, run] of [["generateText", generateText], ["streamText", streamText]]) {
    const steps = await (await run(asked)).steps;
    if (steps.length !== 2) throw new Error(`${name} has ${steps.length} steps`);
    const [first, last] = steps;
    add("call", `${name}, \`tools\``, { calls: calls(first.toolCalls), end: first.finishReason.replace("-", "_") });
    add("result", `${name}, \`tools\`, the second step`, { text: last.text, end: last.finishReason, tokens: used(last.usage) });
  }
  if (done.length !== 2) throw new Error(`the function was called ${done.length} times`);

  const many = tool({ description: ask.tool.description, inputSchema: jsonSchema(ask.freeTool.parameters) });
  const stream = streamText({ ...common, prompt: ask.toolPrompt, tools: { [ask.tool.name]: many }, toolChoice: "required" });
  const [toolCalls, end, usage] = await Promise.all([stream.toolCalls, stream.finishReason, stream.usage]);
  add("calls", "streamText, two calls", { calls: calls(toolCalls), end: end.replace("-", "_"), tokens: used(usage) });
}

async function objects(add) {
  const asked = { ...common, prompt: ask.objectPrompt, schema: Product };
  const whole = await generateObject(asked);
  add("object", "generateObject", { value: whole.object, end: whole.finishReason, tokens: used(whole.usage) });
  const stream = streamObject(asked);
  let last;
  for await (const partial of stream.partialObjectStream) last = partial;
  const value = await stream.object;
  if (JSON.stringify(last) !== JSON.stringify(value)) throw new Error("the last partial object is another one");
  add("object", "streamObject", { value, tokens: used(await stream.usage) });

  const { prompt } = asked;
  const output = Output.object({ schema: Product });
  const text = await generateText({ ...common, prompt, output });
  add("object", "generateText, Output.object", { value: text.output, end: text.finishReason, tokens: used(text.usage) });
}

async function reasoning(add) {
  const asked = { ...common, model: thinker, messages: ask.dialogue, maxOutputTokens: ask.dialogueTokens };
  for (const [name, run] of [["generateText", generateText], ["streamText", streamText]]) {
    const result = await run(asked);
    const [thought, text, end, usage] = await Promise.all([result.reasoningText, result.text, result.finishReason, result.usage]);
    add("reasoning", `${name}, \`reasoningText\``, { reasoning: thought, text, end, tokens: used(usage) });
  }
}

await main(`${versionOf("ai")}, provider ${versionOf("@ai-sdk/openai-compatible")}`, async (add) => {
  await tools(add);
  await objects(add);
  await reasoning(add);
});
