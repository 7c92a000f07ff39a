// The official JavaScript client against Keiko, in both bindings: node tests/peers/a2a/client.mjs, with KEIKO_URL, KEIKO_KEY and DOOR, an
// agent that answers every message with {"text": "done: …"}. Prints `ok` or `not ok` for each scenario and a count at the end.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { Role, TaskState, verifyAgentCardSignature } from "@a2a-js/sdk";
import { ClientFactory, DefaultAgentCardResolver, JsonRpcTransportFactory, RestTransportFactory } from "@a2a-js/sdk/client";

const { KEIKO_URL, KEIKO_KEY, DOOR } = process.env;
const fetchImpl = (url, init = {}) => fetch(url, { ...init, headers: { ...Object.fromEntries(new Headers(init.headers)), "X-API-Key": KEIKO_KEY } });
const BINDINGS = { JSONRPC: new JsonRpcTransportFactory({ fetchImpl }), "HTTP+JSON": new RestTransportFactory({ fetchImpl }) };

function message(text, more = {}) {
  const part = { content: { $case: "text", value: text }, metadata: undefined, filename: "", mediaType: "" };
  return { messageId: randomUUID(), contextId: "", taskId: "", role: Role.ROLE_USER, parts: [part], metadata: undefined, extensions: [], referenceTaskIds: [], ...more };
}

function request(said, returnImmediately = false) {
  const configuration = { acceptedOutputModes: [], taskPushNotificationConfig: undefined, returnImmediately };
  return { tenant: "", message: said, configuration, metadata: undefined };
}

async function connected(binding) {
  const cardResolver = new DefaultAgentCardResolver({ fetchImpl });
  const factory = new ClientFactory({ transports: [BINDINGS[binding]], cardResolver });
  // The whole address: a path would be taken from the root of the server.
  return factory.createFromUrl(`${KEIKO_URL}/a2a/${DOOR}/.well-known/agent-card.json`, "");
}

async function publicKey(kid, jku) {
  const { keys } = await (await fetch(jku)).json();
  return keys.find((key) => key.kid === kid);
}

const scenarios = {
  // As JSON: version 1.3.0 leaves the security schemes out when it writes a card again that it has read.
  async should_verify_the_card(client) {
    assert.equal((await client.getAgentCard()).skills.length, 1);
    const card = await (await fetchImpl(`${KEIKO_URL}/a2a/${DOOR}/.well-known/agent-card.json`)).json();
    await verifyAgentCardSignature(publicKey)(card);
    await assert.rejects(verifyAgentCardSignature(publicKey)({ ...card, name: "somebody else" }));
  },
  async should_send_and_wait(client) {
    const task = await client.sendMessage(request(message("Say hello")));
    assert.equal(task.status.state, TaskState.TASK_STATE_COMPLETED);
    assert.equal(task.artifacts[0].parts[0].content.value, "done: Say hello");
  },
  async should_stream(client) {
    const seen = [];
    for await (const { payload } of client.sendMessageStream(request(message("Say hello")))) seen.push(payload.$case);
    assert.equal(seen[0], "task");
    assert.deepEqual(seen.slice(-2), ["artifactUpdate", "statusUpdate"]);
  },
  async should_read_and_list(client) {
    const { id, contextId } = await client.sendMessage(request(message("Say hello")));
    assert.equal((await client.getTask({ tenant: "", id })).id, id);
    const page = await client.listTasks({ tenant: "", contextId, status: TaskState.TASK_STATE_UNSPECIFIED, pageToken: "", statusTimestampAfter: undefined });
    assert.deepEqual(page.tasks.map((task) => task.id), [id]);
    assert.equal(page.nextPageToken, "");
  },
  async should_be_refused_by_name(client) {
    await assert.rejects(client.getTask({ tenant: "", id: "task_01h455vb4pex5vsknk084sn02q" }), { name: "TaskNotFoundError" });
    const { id } = await client.sendMessage(request(message("Say hello")));
    await assert.rejects(client.cancelTask({ tenant: "", id, metadata: undefined }), { name: "TaskNotCancelableError" });
    await assert.rejects(client.sendMessage(request(message("more", { taskId: id }))), { name: "UnsupportedOperationError" });
  },
  async should_keep_addresses(client) {
    const { id: taskId } = await client.sendMessage(request(message("Say hello")));
    const config = { tenant: "", id: "mine", taskId, url: "http://127.0.0.1:9/hook", token: "", authentication: undefined };
    assert.equal((await client.createTaskPushNotificationConfig(config)).id, "mine");
    await client.deleteTaskPushNotificationConfig({ tenant: "", taskId, id: "mine" });
    const { configs } = await client.listTaskPushNotificationConfig({ tenant: "", taskId, pageSize: 0, pageToken: "" });
    assert.deepEqual(configs, []);
  },
};

let [passed, failed] = [0, 0];
for (const binding of Object.keys(BINDINGS)) {
  for (const [name, scenario] of Object.entries(scenarios)) {
    try {
      await scenario(await connected(binding));
      passed++;
      console.log(`ok ${binding} ${name}`);
    } catch (error) {
      failed++;
      console.log(`not ok ${binding} ${name}: ${error.stack}`);
    }
  }
}
console.log(`judges: ${passed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
