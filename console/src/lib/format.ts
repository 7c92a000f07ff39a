// Times and values for people.
export function age(from: string, now: number): string {
  const s = Math.max(0, Math.round((now - Date.parse(from)) / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86_400)} d`;
}

export function clock(at: string): string {
  return new Date(at).toLocaleTimeString([], { hour12: false });
}

export function pretty(value: unknown): string {
  return JSON.stringify(value, null, 2) ?? "";
}

/// The column of the board that a status belongs to.
export function column(status: string): "pending" | "working" | "done" | "failed" {
  if (status === "pending") return "pending";
  if (status === "claimed") return "working";
  return status === "completed" ? "done" : "failed";
}

/** Whether these permissions hold one: all, all of an area, itself, or itself for what is the person's own. */
export function may(permissions: string[], wanted: string): boolean {
  return permissions.some((held) => {
    const name = held.replace(/:own$/, "");
    return name === wanted || (name.endsWith("*") && wanted.startsWith(name.slice(0, -1)));
  });
}
