// What a client of `make compat` is asked, and the line in which it says what it saw: observing.py for JavaScript.

import { readFileSync } from "node:fs";

const asked = JSON.parse(process.argv[2]);

/** A chat that begins with this text. */
export const user = (text) => [{ role: "user", content: text }];

/** The argument of the program, whose names have camel case here; every client asks the same, with temperature 0. */
export const ask = {
  ...Object.fromEntries(Object.entries(asked).map(([name, value]) => [name.replace(/_(.)/g, (_, letter) => letter.toUpperCase()), value])),
  messages: user(asked.prompt),
};

export const UNKNOWN_MODEL = "no-such-model";

/** Usage, as the suite compares it. */
export const tokens = (prompt, completion) => ({ prompt, completion });

/** Tool calls, [id, name, arguments] each, as the suite compares them: names and arguments, which may be JSON or read already. */
export function callsOf(calls) {
  const ids = new Set(calls.map(([id]) => id));
  if (ids.size !== calls.length || ![...ids].every(Boolean)) throw new Error(`the calls' ids are ${[...ids]}`);
  return calls.map(([, name, given]) => [name, typeof given === "string" ? JSON.parse(given) : given]);
}

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
