// What the page knows: loaded once, then kept true by the events of the log. Touched entities are read again, many at a time.
import type { Api } from "./api";
import { column, may } from "./format";
import { ApiError } from "./http";
import type { Sse } from "./sse";
import type { Agent, Call, FeedEvent, Server, Task } from "./types";

const TASKS_MAX = 400;
const EVENTS_MAX = 500;
const CALLS_MAX = 100;
const SETTLE_MS = 60;
const CALLS_EVERY_MS = 2_000;
const LOOK_EVERY_MS = 5_000;
/** What each part of the page needs. */
const NEEDS = { tasks: ["tasks.read"], agents: ["agents.read"], events: ["events.read"], calls: ["audit.read", "mcp-servers.read"] };

/** How far the log had come. */
interface Position {
  meta: { position: number };
}

export class Fleet {
  agents = $state<Record<string, Agent>>({});
  tasks = $state<Record<string, Task>>({});
  servers = $state<Server[]>([]);
  calls = $state<Call[]>([]);
  events = $state.raw<FeedEvent[]>([]);
  connection = $state<"connecting" | "live" | "reconnecting" | "every 5 s">("connecting");
  /** Why something is not shown. */
  hidden = $state<Partial<Record<keyof typeof NEEDS, string>>>({});

  #api: Api;
  #permissions: string[];
  #stop = new AbortController();
  #after = 0;
  #callsAfter = 0;
  #touched = new Set<string>();
  #settling: ReturnType<typeof setTimeout> | undefined;

  constructor(api: Api, permissions: string[]) {
    this.#api = api;
    this.#permissions = permissions;
  }

  board = $derived.by(() => {
    const columns: Record<"pending" | "working" | "done" | "failed", Task[]> = { pending: [], working: [], done: [], failed: [] };
    for (const task of Object.values(this.tasks)) columns[column(task.attributes.status)].push(task);
    for (const tasks of Object.values(columns)) tasks.sort((a, b) => (a.id < b.id ? 1 : -1));
    return columns;
  });

  /** What each agent works on now. */
  work = $derived.by(() => {
    const work: Record<string, Task[]> = {};
    for (const task of this.board.working) (work[task.attributes.agent_id ?? ""] ??= []).push(task);
    return work;
  });

  async start(): Promise<void> {
    await this.#load();
    void this.#follow();
    void this.#watchCalls();
  }

  stop(): void {
    this.#stop.abort();
    clearTimeout(this.#settling);
  }

  agentName(id: string | null): string {
    return id ? (this.agents[id]?.attributes.name ?? id) : "";
  }

  async #load(): Promise<void> {
    const tasks = await this.#unlessDenied("tasks", () => this.#api.get<Position & { data: Task[] }>("/tasks?limit=200"));
    const agents = await this.#unlessDenied("agents", () => this.#api.get<Position & { data: Agent[] }>("/agents?limit=500"));
    this.tasks = Object.fromEntries((tasks?.data ?? []).map((task) => [task.id, task]));
    this.agents = Object.fromEntries((agents?.data ?? []).map((agent) => [agent.id, agent]));
    // A few events from before, so that the feed is not empty.
    const end = tasks ?? agents ?? (await this.#unlessDenied("events", () => this.#api.get<Position>(`/events?limit=1&after=${2 ** 53}`)));
    this.#after = Math.max(0, (end?.meta.position ?? 0) - 40);
  }

  /** What the person may not see is said, and not asked for. */
  async #unlessDenied<T>(what: keyof typeof NEEDS, ask: () => Promise<T>): Promise<T | null> {
    const missing = NEEDS[what].filter((permission) => !may(this.#permissions, permission));
    if (missing.length > 0) {
      this.hidden[what] = `You may not see this: it needs ${missing.join(" and ")}. Ask an administrator for a role that holds it.`;
      return null;
    }
    return await ask();
  }

  async #follow(): Promise<void> {
    for (let attempt = 0; !this.#stop.signal.aborted; attempt++) {
      try {
        const live = setTimeout(() => (this.connection = "live"), 100);
        try {
          const onEvent = (sse: Sse) => ((attempt = 0), this.#take(sse.data));
          await this.#unlessDenied("events", () => this.#api.follow("/events/stream", this.#after, onEvent, this.#stop.signal));
        } finally {
          clearTimeout(live);
        }
      } catch {
        // Told by `connection`; the loop tries again.
      }
      if (this.#stop.signal.aborted) return;
      if (this.hidden.events) return this.#look();
      this.connection = "reconnecting";
      await pause(Math.min(5_000, 200 * 2 ** attempt), this.#stop.signal);
    }
  }

  /** Instead of following events: looks again now and then. */
  async #look(): Promise<void> {
    this.connection = "every 5 s";
    while (!this.#stop.signal.aborted) {
      await pause(LOOK_EVERY_MS, this.#stop.signal);
      if (document.hidden || this.#stop.signal.aborted) continue;
      this.connection = await this.#load().then(() => "every 5 s" as const, () => "reconnecting" as const);
    }
  }

  #take(data: string): void {
    const event = JSON.parse(data) as FeedEvent;
    if (typeof event.position !== "number") return;
    this.connection = "live";
    this.#after = event.position;
    this.events = [event, ...this.events].slice(0, EVENTS_MAX);
    if (/^(task|agent)_/.test(event.stream)) this.#touch(event.stream);
  }

  #touch(id: string): void {
    this.#touched.add(id);
    this.#settling ??= setTimeout(() => {
      this.#settling = undefined;
      const ids = [...this.#touched];
      this.#touched.clear();
      void Promise.all(ids.map((id) => this.#read(id)));
    }, SETTLE_MS);
  }

  async #read(id: string): Promise<void> {
    if (this.hidden[id.startsWith("task_") ? "tasks" : "agents"]) return;
    try {
      if (id.startsWith("task_")) {
        this.tasks[id] = (await this.#api.get<{ data: Task }>(`/tasks/${id}`)).data;
        this.#trim();
      } else {
        this.agents[id] = (await this.#api.get<{ data: Agent }>(`/agents/${id}`)).data;
      }
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) {
        delete this.agents[id];
        delete this.tasks[id];
      }
    }
  }

  #trim(): void {
    const ids = Object.keys(this.tasks);
    if (ids.length <= TASKS_MAX) return;
    // Ids sort by time: the oldest that are over go first.
    const over = ids.filter((id) => ["done", "failed"].includes(column(this.tasks[id]!.attributes.status))).sort();
    for (const id of over.slice(0, ids.length - TASKS_MAX)) delete this.tasks[id];
  }

  async #watchCalls(): Promise<void> {
    while (!this.#stop.signal.aborted && !this.hidden.calls) {
      if (!document.hidden) {
        await this.#unlessDenied("calls", () => this.#readCalls()).catch(() => {});
      }
      await pause(CALLS_EVERY_MS, this.#stop.signal);
    }
  }

  async #readCalls(): Promise<void> {
    this.servers = (await this.#api.get<{ data: Server[] }>("/mcp-servers?limit=100")).data;
    const found = await this.#api.get<{ data: Call[] }>(`/journal?class=tool_call&limit=500&after=${this.#callsAfter}`);
    this.#callsAfter = found.data.at(-1)?.attributes.position ?? this.#callsAfter;
    this.calls = [...found.data.reverse(), ...this.calls].slice(0, CALLS_MAX);
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
