"""The editor: makes the report, as Markdown and as JSON, from the other agents' results and from how they came about."""

import render

from keiko import Agent, Task

agent = Agent("editor", description="Writes the report on a repository")


@agent.capability("repository-report", domains=["git"], description="The report, as Markdown and as JSON")
async def edit(task: Task, run_id: str, repository: dict, parts: list, notes: list) -> dict:
    events = await task.client.tasks.events(task.id)
    claimed = [event.position for event in events if event.type == "tasks.task.claimed"]
    own = {"part": "report", "agent": agent.name, "task_id": task.id, "positions": {"claimed": claimed}}
    report = {"run_id": run_id, "repository": repository, "notes": notes, "parts": parts, "editor": own}
    await task.progress(50, "writing")
    return {"markdown": render.markdown(report), "report": report}
