"""Arguments of functions and constructors, checked as settings are: by the annotations where they are declared."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_type_hints

from pydantic import Field, ValidationError, create_model

from spirl_ray.errors import SpirlError
from spirl_ray.settings import Settings, in_words, key_of, problems_of

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Noise = Annotated[float, Field(ge=0.0, le=1000.0)]
"""The size of noise; what its unit is says the argument."""
RenderMode = Literal["rgb_array"] | None
RenderSize = Annotated[int, Field(ge=16, le=4096)]
"""The side of a rendered image in pixels."""
_MODEL = "arguments"
"""The attribute of a decorated function that holds the model of its arguments."""


def checked(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorates a function or a constructor: arguments that have a default become what their annotations say.

    The bounds of ``Annotated`` hold, numbers are finite, and where a list is meant, a single value is a list of one.
    The decorated function raises `SpirlError` for a value that is refused.
    """
    hints = get_type_hints(function, include_extras=True)
    signature = inspect.signature(function)
    fields: dict[str, Any] = {
        name: (hints[name], parameter.default)
        for name, parameter in signature.parameters.items()
        if parameter.default is not parameter.empty
    }
    model = create_model(function.__qualname__, __base__=Settings, **fields)
    name = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        bound = signature.bind(*args, **kwargs)
        given = {name: value for name, value in bound.arguments.items() if name in fields}
        bound.arguments.update(_validated(model, given, name))
        return function(*bound.args, **bound.kwargs)

    setattr(call, _MODEL, model)
    return call


def checked_arguments(
    function: Callable[..., Any], given: Mapping[str, Any], where: str, apart: Collection[str] = ()
) -> dict[str, Any]:
    """The arguments as the function needs them, without a call.

    Args:
        function: a function or class. Its annotations count where it is decorated by `checked`, else its names alone.
        given: the arguments by name.
        where: what messages begin with.
        apart: names that the caller passes itself, so that they cannot be given.

    Raises:
        SpirlError: the function does not take an argument, or refuses a value.
    """
    known, takes_any = parameters(function)
    known -= set(apart)
    unknown = sorted(name for name in given if name in apart or (name not in known and not takes_any))
    if unknown:
        raise SpirlError(
            f"{where} takes no argument {', '.join(map(repr, unknown))}; it takes {', '.join(sorted(known)) or 'none'}"
        )
    model = getattr(function.__init__ if inspect.isclass(function) else function, _MODEL, None)
    return dict(given) if model is None else _validated(model, given, where)


def parameters(function: Callable[..., Any]) -> tuple[set[str], bool]:
    """The names of what a function or class takes, and True where it takes any other name as well."""
    found = inspect.signature(function).parameters.values()
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = {parameter.name for parameter in found if parameter.kind not in variable}
    return names, any(parameter.kind is parameter.VAR_KEYWORD for parameter in found)


def _validated(model: type[Settings], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        values = model.model_validate(dict(given))
    except ValidationError as error:
        problems = "; ".join(f"{key_of(problem)} {in_words(problem)}" for problem in problems_of(error))
        raise SpirlError(f"{where}: {problems}") from error
    return {name: getattr(values, name) for name in given}
