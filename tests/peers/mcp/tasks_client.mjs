// Tasks of version 2025-11-25 as the official JavaScript client has them: KEIKO_URL, KEIKO_KEY, node tests/peers/mcp/tasks_client.mjs TOOL
// ARGUMENTS. Prints the messages of a call that is a task, one in each line.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { CallToolResultSchema } from "@modelcontextprotocol/sdk/types.js";

const [tool, given] = process.argv.slice(2);
const client = new Client({ name: "peer", version: "1" }, { capabilities: { tasks: { requests: {} } } });
await client.connect(new StreamableHTTPClientTransport(new URL(process.env.KEIKO_URL), { requestInit: { headers: { "X-API-Key": process.env.KEIKO_KEY } } }));
await client.listTools();
const stream = client.experimental.tasks.callToolStream({ name: tool, arguments: JSON.parse(given) }, CallToolResultSchema, { task: { ttl: 60_000 } });
for await (const message of stream) {
  console.log(JSON.stringify(message.type === "error" ? { type: "error", error: `${message.error}` } : message));
}
await client.close();
process.exit(0);
