"""`ModelInstance`: a loaded model being served, for as long as some engine holds it.

Engines are handles. `ModelInstance.shared` finds the instance of an equal configuration or loads it
once, however many threads ask; the last handle to go closes it. A forked child keeps the weights
it inherited and starts threads of its own at its first call.

Callers may be interrupted anywhere and an engine collected amid anything. So a hold is an object
that lets go by being collected, and letting go twice is as good as once.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial

from ..checkpoint.resolve import resolve_checkpoint
from ..checkpoint.spec import ModelSpec, read_spec
from ..config import EngineConfig
from ..errors import EngineClosed, EngineFailed
from ..locks import fork_safe
from ..runner.base import ModelRunner
from ..scheduler.prefix_cache import PrefixCache
from ..scheduler.scheduler import Scheduler
from ..stats import StatsHooks
from . import process
from .core.core import EngineCore, Health
from .core.threads import make_threads
from .info import EngineInfo
from .inputs import InputProcessor
from .tokenizer import Tokenizer
from .tokenizer_process import TokenizerProcess

__all__ = ["Handle", "ModelInstance"]


class Handle:
    """One engine's hold on an instance, for as long as the object is there and not released."""

    def __init__(self, instance: ModelInstance) -> None:
        self.instance = instance
        # Before the instance knows it, or one lost by an interrupt would hold it for ever.
        self.when_collected = weakref.finalize(self, instance.note_collected)
        self.when_collected.atexit = False  # at exit, instances are stopped, not drained

    def __repr__(self) -> str:
        return f"Handle({self.instance!r})"


class ModelInstance:
    """A model, the runner that holds its weights, and the core that serves it."""

    def __init__(
        self,
        spec: ModelSpec,
        runners: Sequence[ModelRunner],
        tokenizers: Sequence[Tokenizer],
        config: EngineConfig,
        *,
        reloadable: bool = True,
        renew: Callable[[], Sequence[ModelRunner]] | None = None,
    ) -> None:
        """`renew` loads other runners for a forked child, where it cannot use its parent's."""
        self.reloadable = reloadable  # whether the configuration is all it takes to load it again
        self._renew = renew
        self.spec = spec
        self.runners = tuple(runners)
        self.config = config
        self._tokenizers = tuple(tokenizers)
        self.inputs = InputProcessor(
            spec,
            self.runners[0].routes,
            tokenizers,
            max_length=config.max_length,
            caches_prefixes=self.runners[0].prefix_cache_config is not None,
        )
        self.hooks = StatsHooks()
        # Under `_lock`: who holds the instance, and which process the threads are in.
        self._lock = fork_safe(threading.RLock())
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._is_let_go = False
        self._process = os.getpid()
        self._core = self._start_core()
        process.add_instance(self)

    @classmethod
    def load(cls, config: EngineConfig) -> ModelInstance:
        """Load a model and start serving it. Raises `ModelError`s and `InvalidOption`."""
        prompts = None if config.prompts is None else dict(config.prompts)
        checkpoint = resolve_checkpoint(
            config.model,
            revision=config.revision,
            cache_dir=config.cache_dir,
            trust_remote_code=config.trust_remote_code,
        )
        spec = read_spec(
            checkpoint,
            pooling=None if config.pooling is None else tuple(config.pooling),
            prompts=prompts,
            trust_remote_code=config.trust_remote_code,
        )
        from ..runner.load import load_model  # torch: only now that there is something to load

        loaded = load_model(spec, config)
        return cls(spec, loaded.runners, loaded.tokenizers, config, renew=loaded.renew)

    @classmethod
    def shared(cls, config: EngineConfig) -> Handle:
        """A handle on the instance of this configuration; loaded by the first to ask."""
        handle: Handle = process.shared(config, lambda: cls.load(config).acquire())
        return handle

    def acquire_to_share(self) -> Handle | None:
        """A handle, unless it has failed or been let go: those who hold it keep it."""
        if self.health == "failed":
            return None
        try:
            return self.acquire()
        except EngineClosed:  # the last holder let go in between
            return None

    def _start_core(self, cause: BaseException | None = None) -> EngineCore:
        config, runners = self.config, self.runners
        budgets = [runner.prefix_cache_config for runner in runners]
        caches = [PrefixCache.of(budget) for budget in budgets if budget is not None]
        budget = budgets[0] if len(caches) == len(budgets) else None
        scheduler = Scheduler(
            runners[0].shapes,
            max_batch_tokens=self._max_batch_tokens,
            max_queue_tokens=config.max_queue_tokens,
            max_query_wait_s=config.max_query_wait_ms / 1000,
            depth=min(runner.limits.depth for runner in runners),
            workers=sum(runner.limits.workers for runner in runners),
            query_workers=sum(runner.limits.query_workers for runner in runners),
            min_short_batch_tokens=min(runner.limits.min_batch_tokens for runner in runners),
            caches=() if budget is None else caches,
            min_saved_tokens=0 if budget is None else budget.min_saved_tokens,
            max_prefixed_tokens=None if budget is None else budget.max_batch_tokens,
        )
        core = EngineCore(
            runners,
            self.inputs,
            scheduler,
            hooks=self.hooks,
            cause=cause,
            closes_runners=self.reloadable,
        )
        # Where an interrupt keeps the instance from its engine, no other code would stop it.
        close = partial(core.close, drain=True, wait=False)
        weakref.finalize(self, core.background.add, close).atexit = False
        self._tokenizer_processes = TokenizerProcess.several(
            self._tokenizers,
            config.tokenizer_process,
            devices=[runner.device_name for runner in runners],
        )
        core.start(() if cause is not None else make_threads(core, self._tokenizer_processes))
        return core

    @property
    def _max_batch_tokens(self) -> int:
        """A batch may run on any of the devices."""
        return min(runner.limits.max_batch_tokens for runner in self.runners)

    @property
    def core(self) -> EngineCore:
        """The running core; in a forked child, one of its own from the first call on.

        That one has failed where the device does not survive a fork.
        """
        if self._process != os.getpid():
            with self._lock:
                if self._process != os.getpid():
                    if self._renew is not None:
                        self.runners = tuple(self._renew())
                    self._core = self._start_core(self._fork_failure())
                    self._process = os.getpid()
        return self._core

    @property
    def own_core(self) -> EngineCore | None:
        """This process's; None in a forked child before its first call.

        It is asked for the process each time: an interrupt may end what is done at a fork.
        """
        return self._core if self._process == os.getpid() else None

    @property
    def health(self) -> Health:
        """The core's. Asking starts no thread, in a forked child either."""
        if (core := self.own_core) is not None:
            return core.health
        return "failed" if self._fork_failure() else "ready"

    def _fork_failure(self) -> BaseException | None:
        uses_cuda = any("cuda" in runner.device_name for runner in self.runners)
        if self._renew is not None or not uses_cuda:
            return None
        return EngineFailed(
            "CUDA does not survive a fork: make the engine in the child, or start workers "
            "with the 'spawn' method"
        )

    def acquire(self) -> Handle:
        """Hold the instance for one more engine. Raises `EngineClosed` once it has been let go."""
        with self._lock:
            if self._is_let_go:
                raise EngineClosed("the engine is closed; make a new one")
            handle = Handle(self)
            self._handles.add(handle)
        return handle

    def release(self, handle: Handle | None = None, *, drain: bool = True) -> None:
        """Let go, or see that another thread has. The last one stops it: see `EngineCore.close`."""
        with self._lock:
            if handle is not None:
                self._handles.discard(handle)
            if any(True for _ in self._handles):
                return
            self._is_let_go = True
        process.unshare(self.config, self)
        self.stop(drain=drain, wait=False)

    def wait_if_let_go(self, *, drain: bool) -> None:
        """Wait for the threads' end, if the last handle was released."""
        if self._is_let_go:
            self.stop(drain=drain, wait=True)

    def note_collected(self) -> None:
        """A handle was collected, amid anything: have it stopped if it was the last."""
        if (core := self.own_core) is not None:
            core.background.add(self.release)

    def stop(self, *, drain: bool, wait: bool) -> None:
        """Stop the core, if it is this process's own."""
        if (core := self.own_core) is not None:
            core.close(drain=drain, wait=wait)

    def info(self) -> EngineInfo:
        """What is served and how."""
        return EngineInfo(
            model=self.spec,
            device=", ".join(runner.device_name for runner in self.runners),
            dtype=self.runners[0].dtype_name,
            routes=tuple(self.runners[0].routes),
            max_batch_tokens=self._max_batch_tokens,
            max_queue_tokens=self.config.max_queue_tokens,
            max_query_wait_ms=self.config.max_query_wait_ms,
            prefix_cache=self.runners[0].prefix_cache_config,
            replicas=len(self.runners),
            tensor_parallel_size=self.config.tensor_parallel_size,
            processes=tuple(pid for runner in self.runners for pid in runner.pids),
            tokenizer_processes=len(self._tokenizer_processes),
            bulk_multiprocessors=self.runners[0].limits.bulk_multiprocessors,
        )

    def after_fork_in_child(self) -> None:
        """The threads stayed behind."""
        self._core.abandon_in_child()

    def __repr__(self) -> str:
        return f"ModelInstance({self.spec.name!r}, handles={len(self._handles)}, {self._core!r})"
