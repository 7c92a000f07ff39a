"""A function as a capability: its JSON Schemas from its type hints, its arguments from a task's input, its result as output."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from .errors import TaskFailed

Function = Callable[..., Any]
Schema = dict[str, Any]
PLAIN = inspect.Parameter.POSITIONAL_OR_KEYWORD


class Capability:
    """Something an agent can do. `input` and `output` are a pydantic model, a JSON Schema, or None: look at the type hints."""

    def __init__(
        self,
        name: str,
        function: Function,
        *,
        input: type[BaseModel] | Schema | None = None,
        output: type[BaseModel] | Schema | None = None,
        description: str | None = None,
        version: str | None = None,
        domains: Sequence[str] = (),
        tags: Sequence[str] = (),
        task_types: tuple[type, ...] = (),
    ) -> None:
        self.name = name
        self._function = function
        self.is_async = inspect.iscoroutinefunction(function)
        hints = get_type_hints(function)
        parameters = list(inspect.signature(function).parameters.values())
        self._task_at = next((p.name for p in parameters if hints.get(p.name) in task_types), None)
        self._rest = [p for p in parameters if p.name != self._task_at]
        self._whole, self._model = self._input_of(input, hints)
        self.body: dict[str, Any] = {
            "name": name,
            "version": version or "1.0.0",
            "description": description if description is not None else inspect.getdoc(function) or "",
            "domains": list(domains),
            "tags": list(tags),
            "input_schema": input if isinstance(input, dict) else self._model and self._model.model_json_schema(),
            "output_schema": output_schema(output, hints.get("return")),
        }

    def _input_of(self, input: type[BaseModel] | Schema | None, hints: dict[str, Any]) -> tuple[str | None, type[BaseModel] | None]:
        """The parameter that takes the whole input, if there is one, and the model that checks the input, if there is one."""
        only = self._rest[0] if len(self._rest) == 1 and self._rest[0].kind in (PLAIN, inspect.Parameter.KEYWORD_ONLY) else None
        if isinstance(input, dict):
            return (only.name if only and hints.get(only.name, dict) in (dict, dict[str, Any], Any) else None), None
        if input is not None:
            return (only.name if only else None), input
        hint = hints.get(only.name) if only else None
        if only and inspect.isclass(hint) and issubclass(hint, BaseModel):
            return only.name, hint
        return None, fields_model(self.name, self._rest, hints) if self._rest else None

    async def run(self, task: Any, input: dict[str, Any]) -> dict[str, Any]:
        """The output for an input. Plain functions run in a thread of their own."""
        arguments = self._arguments(input)
        if self._task_at:
            arguments[self._task_at] = task
        if self.is_async:
            return output_of(await self._function(**arguments))
        return output_of(await in_thread(lambda: self._function(**arguments)))

    def _arguments(self, input: dict[str, Any]) -> dict[str, Any]:
        if self._model is None:
            return {self._whole: input} if self._whole else self._taken(input)
        try:
            value = self._model.model_validate(input)
        except ValidationError as error:
            raise TaskFailed("INPUT_INVALID", str(error), retryable=False) from None
        if self._whole:
            return {self._whole: value}
        fields = type(value).model_fields
        names = {field.alias or name: name for name, field in fields.items()}
        return self._taken({**(value.model_extra or {}), **{shown: getattr(value, name) for shown, name in names.items()}})

    def _taken(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values that the function has parameters for."""
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self._rest):
            return dict(values)
        return {p.name: values[p.name] for p in self._rest if p.name in values}


def fields_model(name: str, parameters: Sequence[inspect.Parameter], hints: dict[str, Any]) -> type[BaseModel]:
    """A model with a field for each parameter. Fields have neutral names, since a parameter may be called like a model's method."""
    fields: dict[str, Any] = {}
    for at, parameter in enumerate(parameters):
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY or parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            raise TypeError(f"capability {name!r}: the input's fields arrive by name, so {parameter.name!r} cannot be positional")
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[f"field_{at}"] = (hints.get(parameter.name, Any), Field(default, alias=parameter.name, title=parameter.name))
    takes_more = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    config = ConfigDict(extra="allow" if takes_more else "ignore")
    model: type[BaseModel] = create_model(name, __config__=config, **fields)
    return model


def output_schema(output: type[BaseModel] | Schema | None, hint: Any) -> Schema | None:
    """The schema of an object, given or found in the return type; None when anything goes."""
    if isinstance(output, dict):
        return output
    wanted = output if output is not None else hint
    if wanted is None or wanted is type(None) or wanted is Any or wanted is dict:
        return None
    try:
        schema = TypeAdapter(wanted).json_schema(mode="serialization")
    except (PydanticSchemaGenerationError, PydanticUserError):
        return None
    return schema if schema.get("type") == "object" or "$ref" in schema else None


def output_of(result: Any) -> dict[str, Any]:
    """What a function returned, as the object that a task's output is."""
    plain = {} if result is None else TypeAdapter(Any).dump_python(result, mode="json", by_alias=True)
    if not isinstance(plain, dict):
        raise TaskFailed(
            "OUTPUT_NO_OBJECT", f"The capability returned {type(result).__name__}; a dict or a model is needed.", retryable=False
        )
    return plain


async def in_thread(function: Callable[[], Any]) -> Any:
    """The function's result, from a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(result)

    def work() -> None:
        result, problem = None, None
        try:
            result = context.run(function)
        except BaseException as error:
            problem = RuntimeError("the capability raised StopIteration") if isinstance(error, StopIteration) else error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=work, name="keiko-capability", daemon=True).start()
    return await future
