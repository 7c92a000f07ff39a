// An agent by the official JavaScript SDK of A2A: `node a2a_agent.mjs PORT BINDING`. It echoes what it is told, once it has worked on it;
// what begins with "ask" makes it ask back.

import { randomUUID } from "node:crypto";
import { Role, TaskState } from "@a2a-js/sdk";
import { AgentEvent, DefaultRequestHandler, InMemoryTaskStore } from "@a2a-js/sdk/server";
import { agentCardHandler, jsonRpcHandler, restHandler, UserBuilder } from "@a2a-js/sdk/server/express";
import express from "express";

const [port, binding] = process.argv.slice(2);
const part = (text) => ({ content: { $case: "text", value: text }, metadata: undefined, filename: "", mediaType: "" });
const card = {
  name: "echo", description: "Echoes", version: "1", provider: undefined, capabilities: { streaming: true, pushNotifications: false, extensions: [], extendedAgentCard: false },
  supportedInterfaces: [{ url: `http://127.0.0.1:${port}/a2a`, protocolBinding: binding, tenant: "", protocolVersion: "1.0" }],
  securitySchemes: {}, securityRequirements: [], defaultInputModes: ["text/plain"], defaultOutputModes: ["text/plain"], signatures: [],
  skills: [{ id: "do", name: "Echo", description: "Says it again", tags: ["echo"], examples: [], inputModes: [], outputModes: [], securityRequirements: [] }],
};

const executor = {
  async execute({ userMessage, taskId, contextId, task }, bus) {
    const text = userMessage.parts.map(({ content }) => (content.$case === "text" ? content.value : "")).join("");
    const status = (state, said) => ({ state, timestamp: new Date().toISOString(), message: said && {
      messageId: randomUUID(), contextId, taskId, role: Role.ROLE_AGENT, parts: [part(said)], metadata: undefined, extensions: [], referenceTaskIds: [],
    } });
    const tell = (state, said) => bus.publish(AgentEvent.statusUpdate({ taskId, contextId, status: status(state, said), metadata: undefined }));
    if (!task) bus.publish(AgentEvent.task({ id: taskId, contextId, status: status(TaskState.TASK_STATE_SUBMITTED), artifacts: [], history: [userMessage], metadata: undefined }));
    if (text.startsWith("ask")) {
      tell(TaskState.TASK_STATE_INPUT_REQUIRED, "Which one?");
      return bus.finished();
    }
    tell(TaskState.TASK_STATE_WORKING, "on it");
    await new Promise((done) => setTimeout(done, 200));
    const artifact = { artifactId: "a", name: "", description: "", parts: [part(`echo ${text}`)], metadata: undefined, extensions: [] };
    bus.publish(AgentEvent.artifactUpdate({ taskId, contextId, artifact, append: false, lastChunk: true, metadata: undefined }));
    tell(TaskState.TASK_STATE_COMPLETED);
    bus.finished();
  },
  async cancelTask(taskId, bus) {
    bus.finished();
  },
};

const requestHandler = new DefaultRequestHandler(card, new InMemoryTaskStore(), executor);
const app = express();
app.use("/.well-known/agent-card.json", agentCardHandler({ agentCardProvider: requestHandler }));
const serve = binding === "JSONRPC" ? jsonRpcHandler : restHandler;
app.use("/a2a", serve({ requestHandler, userBuilder: UserBuilder.noAuthentication }));
app.listen(Number(port), "127.0.0.1");
