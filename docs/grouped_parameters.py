"""For mkdocstrings: parameters described together have each its own type and default.

numpy style lets ``column, labels_level, seed`` share one description. griffe then gives all of them
the type and the default of the first.
"""

from typing import Any

import griffe


class GroupedParameters(griffe.Extension):
    """Looks at each docstring once, before it is rendered."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Correct the parameters of a function or class."""
        if obj.docstring is None or not isinstance(obj, griffe.Function | griffe.Class):
            return
        sections = obj.docstring.parse("numpy")
        known = {parameter.name: parameter for parameter in obj.parameters}
        for section in sections:
            if isinstance(section, griffe.DocstringSectionParameters):
                _correct(section.value, known)
        obj.docstring.__dict__["parsed"] = sections  # what `parsed` would have kept


def _correct(shown: list[griffe.DocstringParameter], known: dict[str, griffe.Parameter]) -> None:
    for each in shown:
        parameter = known.get(each.name)
        if parameter is None:
            continue
        each.value = None if parameter.default is None else str(parameter.default)
        if any(each.annotation is other.annotation for other in known.values()):  # not written
            each.annotation = parameter.annotation
