"""Which tokens are hidden and which are predicted: one policy a file.

Every module of this folder that defines a `Masking` with its own `kind` is a policy; a new file is
enough to add one (docs/add-a-masking-policy.md).
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from cloze.masking.base import Masking

for _module in iter_modules(__path__, prefix=f"{__name__}."):
    import_module(_module.name)

POLICIES: dict[str, type[Masking]] = {
    cls.model_fields["kind"].default: cls
    for cls in sorted(Masking.__subclasses__(), key=lambda c: c.__name__)
}
"""{kind: class} of all policies."""
