"""The agents of the fleet, by name. Each runs in a process of its own."""

from agents import editor, historian, surveyor

AGENTS = {module.agent.name: module.agent for module in (historian, surveyor, editor)}
