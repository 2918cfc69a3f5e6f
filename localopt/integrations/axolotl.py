"""axolotl: a plugin that localizes whatever optimizer a configuration asks for.

In the configuration:

    plugins:
      - localopt.integrations.axolotl.LocalizePlugin
    localopt:                       # all of it optional
      trace: trace.safetensors      # train the layers that a trace chose; without it, all of them, with selective decay
      rates: false                  # scale their rates with the trace (TGL + ALR) instead of freezing the others
      partial: false                # the run trains only some of the traced layers: those with adapters
      anchor_decay: 100             # L2-SP; left out: selective without a trace, none with one
      layers: sublayer

Everything else (optimizer, rates, schedule, FSDP) is axolotl's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from localopt.errors import InputError
from localopt.integrations.transformers import localize
from localopt.policies.protocol import Policy
from localopt.tracing.layer_trace import LayerTrace

_OPTIONS = ("layers", "frozen_state", "nonfinite", "anchor_decay")

if TYPE_CHECKING:

    class _Base:
        """What axolotl's plugins derive from."""

        def register(self, cfg: Any) -> None: ...
else:
    try:
        from axolotl.integrations.base import BasePlugin as _Base
    except ImportError:  # axolotl calls every method of its base class, so only it can run this plugin

        class _Base:
            def register(self, cfg: Any) -> None: ...


class LocalizePlugin(_Base):
    """Hooks into axolotl where the trainer has been made."""

    def get_input_args(self) -> str:
        """Return where the pydantic model of the plugin's part of the configuration is."""
        return "localopt.integrations.axolotl.LocalizeArgs"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Localize the optimizer that the trainer will make."""
        given = cfg.get("localopt") or {}
        policy, options = settings(given)
        localize(trainer, policy, **options)


def settings(given: Mapping[str, Any]) -> tuple[Policy | None, dict[str, Any]]:
    """Return the policy and options that the configuration's ``localopt:`` asks for, for LocalizedOptimizer.

    Raises:
        InputError: a key that is not known, or a trace that cannot be read.
    """
    known = ("trace", "rates", "partial", *_OPTIONS)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(f"localopt: does not know {', '.join(unknown)}; it takes {', '.join(known)}")
    options = {key: given[key] for key in _OPTIONS if given.get(key) is not None}
    if not given.get("trace"):
        for key in ("rates", "partial"):
            if given.get(key):
                raise InputError(f"localopt.{key} is about a trace: give localopt.trace too")
        return None, options
    trace, partial = LayerTrace.load(given["trace"]), bool(given.get("partial"))
    scales = trace.adaptive_learning_rates if given.get("rates") else trace.frozen_parameters
    return scales(partial=partial), options


def __getattr__(name: str) -> Any:
    if name != "LocalizeArgs":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pydantic import create_model  # comes with axolotl, which asks for this

    fields: dict[str, Any] = {"localopt": (dict[str, Any] | None, None)}
    return create_model("LocalizeArgs", __module__=__name__, **fields)
