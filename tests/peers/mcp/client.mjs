// An official JavaScript client against Keiko: node tests/peers/mcp/client.mjs PACKAGE, with KEIKO_URL (that of /mcp or /sse), KEIKO_KEY.
// Reads a list of [method, params] from its standard input and prints what each answers, as a list. A person who says yes to everything
// sits before it.

import { text } from "node:stream/consumers";

const [name] = process.argv.slice(2);
const { KEIKO_URL, KEIKO_KEY } = process.env;
const isNew = name === "@modelcontextprotocol/client";
const load = async (path) => import(isNew ? name : `${name}/${path}`);
const { Client } = await load("client/index.js");
const over = KEIKO_URL.includes("/sse") ? "SSEClientTransport" : "StreamableHTTPClientTransport";
const Transport = (await load(over.startsWith("SSE") ? "client/sse.js" : "client/streamableHttp.js"))[over];
const requestInit = { headers: { "X-API-Key": KEIKO_KEY } };
// The stream of the oldest transport is opened by other means.
const eventSourceInit = { fetch: (url, init = {}) => fetch(url, { ...init, headers: { ...init.headers, ...requestInit.headers } }) };

const said = {
  "elicitation/create": async () => ({ action: "accept", content: { value: "Ada" } }),
  "sampling/createMessage": async () => ({ role: "assistant", content: { type: "text", text: "a sampled answer" }, model: "m" }),
  "roots/list": async () => ({ roots: [{ uri: "file:///home/ada", name: "home" }] }),
};
const knowsElicitation = isNew || Number(name.split("-").pop()) >= 17 || !name.includes("mcp-sdk");
const capabilities = { sampling: {}, roots: {}, ...(knowsElicitation ? { elicitation: {} } : {}) };
const options = isNew ? { capabilities, versionNegotiation: { mode: "auto" } } : { capabilities };
const client = new Client({ name: "peer", version: "1" }, options);
if (isNew) {
  for (const [method, answer] of Object.entries(said)) client.setRequestHandler(method, answer);
} else {
  const types = await load("types.js");
  client.setRequestHandler(types.CreateMessageRequestSchema, said["sampling/createMessage"]);
  client.setRequestHandler(types.ListRootsRequestSchema, said["roots/list"]);
  if (knowsElicitation) client.setRequestHandler(types.ElicitRequestSchema, said["elicitation/create"]);
}

await client.connect(new Transport(new URL(KEIKO_URL), { requestInit, eventSourceInit }));
const ways = {
  "tools/list": () => client.listTools(),
  "tools/call": (params) => (isNew ? client.callTool(params) : client.callTool(params, undefined, { timeout: 30_000 })),
  "resources/list": () => client.listResources(),
  "resources/read": (params) => client.readResource(params),
  "prompts/list": () => client.listPrompts(),
  "prompts/get": (params) => client.getPrompt(params),
};
const answers = [];
for (const [method, params] of JSON.parse(await text(process.stdin))) {
  try {
    answers.push(await ways[method](params));
  } catch (error) {
    answers.push({ failed: `${error}` });
  }
}
console.log(JSON.stringify({ version: client.getNegotiatedProtocolVersion?.() ?? client.transport?.protocolVersion ?? null, answers }));
await client.close();
process.exit(0);
