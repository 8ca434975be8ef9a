// What a client of `make compat` is asked, and the line in which it says what it saw: observing.py for JavaScript.

import { readFileSync } from "node:fs";

const [url, key, model, prompt, maxTokens, stop] = process.argv.slice(2);

/** The arguments of the program; every client asks the same, with temperature 0. */
export const ask = { url, key, model, prompt, maxTokens: Number(maxTokens), stop, messages: [{ role: "user", content: prompt }] };

export const UNKNOWN_MODEL = "no-such-model";

/** Usage, as the suite compares it. */
export const tokens = (prompt, completion) => ({ prompt, completion });

/** The version of a package in node_modules. */
export const versionOf = (name) => JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;

/** Run a client, which calls `add(kind, call, saw)`. What it saw before an exception is printed too. */
export async function main(version, client) {
  const observations = [];
  try {
    await client((kind, call, saw) => observations.push({ kind, call, saw }));
  } finally {
    console.log(JSON.stringify({ version: `${version} on node ${process.versions.node}`, observations }));
  }
}
