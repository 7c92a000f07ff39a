// The parts of the API's resources that the page shows.
export interface Resource<T> {
  id: string;
  type: string;
  attributes: T;
}

export interface AgentFields {
  name: string;
  agent_type: string;
  description: string;
  status: string;
  capabilities: { name: string }[];
  max_concurrency: number;
  updated_at: string;
  deleted_at?: string | null;
}

export interface TaskFields {
  description: string;
  capability: string;
  status: string;
  queue: string;
  priority: number;
  attempt: number;
  max_attempts: number;
  input: unknown;
  output: unknown;
  context: unknown;
  error: { code: string; message: string } | null;
  progress: { percent: number | null; message: string | null } | null;
  agent_id: string | null;
  created_at: string;
  updated_at: string;
}

export interface ServerFields {
  name: string;
  status: string;
  reason: string | null;
  tools: number;
  wants_account: boolean;
  connect_url: string | null;
  circuits: { tool: string | null; address: string | null; reason: string }[];
}

export interface CallFields {
  position: number;
  kind: string;
  recorded_at: string;
  actor: { kind: string; id: string };
  data: {
    call_id: string;
    tool: string;
    arguments: unknown;
    result: { is_error: boolean; content: unknown } | null;
    error: { code: string; message: string } | null;
    duration_ms: number;
  } | null;
}

export interface FeedEvent {
  id: string;
  type: string;
  stream: string;
  position: number;
  timestamp: string;
  source: string;
  data: unknown;
}

export type Agent = Resource<AgentFields>;
export type Task = Resource<TaskFields>;
export type Server = Resource<ServerFields>;
export type Call = Resource<CallFields>;
