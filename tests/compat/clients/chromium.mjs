// A page in headless Chromium, of another origin than the server: fetch, its streamed body, and EventSource.
//
// EventSource cannot send an API key, so that the suite gives this client a server without one.

import { execFileSync } from "node:child_process";
import { createServer } from "node:http";

import { chromium } from "playwright-core";

import { UNKNOWN_MODEL, ask, main, tokens, versionOf } from "./observing.mjs";

const PROGRAM = execFileSync("which", ["chromium"], { encoding: "utf8" }).trim();
const FLAGS = ["--disable-gpu", "--disable-background-networking"];
const chat = { model: ask.model, messages: ask.messages, max_tokens: ask.maxTokens, temperature: 0 };
const streamed = { ...chat, stream: true, stream_options: { include_usage: true, resumable: true } };

/** In the page: POST a chat; its status, its stream's name, and its body, read piece by piece. */
async function post({ url, body }) {
  const answer = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  let text = "";
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) text += piece.value;
  return { status: answer.status, stream: answer.headers.get("X-Stream-Id"), text };
}

/** In the page: the data of all events of a stream, up to its [DONE]. */
function events({ url, stream }) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(`${url}/v1/streams/${stream}`);
    const received = [];
    source.onerror = () => reject(new Error("EventSource failed"));
    source.onmessage = ({ data }) => {
      received.push(data);
      if (data === "[DONE]") {
        source.close();
        resolve(received);
      }
    };
  });
}

function factsOfStream(payloads) {
  if (payloads.pop() !== "[DONE]") throw new Error("the stream's last event is not [DONE]");
  const chunks = payloads.map((payload) => JSON.parse(payload));
  const choices = chunks.flatMap((chunk) => chunk.choices);
  const { prompt_tokens, completion_tokens } = chunks.at(-1).usage;
  return {
    text: choices.map((choice) => choice.delta.content ?? "").join(""),
    end: choices.at(-1).finish_reason,
    tokens: tokens(prompt_tokens, completion_tokens),
  };
}

const pages = createServer((_, answer) => answer.setHeader("Content-Type", "text/html").end("<!doctype html>"));
await new Promise((listening) => pages.listen(0, "127.0.0.1", listening));
const browser = await chromium.launch({ executablePath: PROGRAM, chromiumSandbox: false, args: FLAGS });
try {
  await main(`${browser.version()}, playwright-core ${versionOf("playwright-core")}`, async (add) => {
    const page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${pages.address().port}/`);

    const whole = await page.evaluate(post, { url: ask.url, body: chat });
    const answer = JSON.parse(whole.text);
    const [{ message, finish_reason }] = answer.choices;
    const used = tokens(answer.usage.prompt_tokens, answer.usage.completion_tokens);
    add("chat", "fetch from another origin", { text: message.content, end: finish_reason, tokens: used });

    const { text, stream } = await page.evaluate(post, { url: ask.url, body: streamed });
    const payloads = [...text.matchAll(/^data: (.*)$/gm)].map((match) => match[1]);
    add("chat", "fetch, `stream`", factsOfStream(payloads));

    const again = await page.evaluate(events, { url: ask.url, stream });
    add("chat", "EventSource of /v1/streams/{id}, from its beginning", factsOfStream(again));

    const { status, text: refusal } = await page.evaluate(post, { url: ask.url, body: { ...chat, model: UNKNOWN_MODEL } });
    const { message: said, code } = JSON.parse(refusal).error;
    add("unknown model", "fetch, an unknown model", { status, message: said, code });
  });
} finally {
  await browser.close();
  pages.close();
}
