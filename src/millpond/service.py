"""`Service`: a loaded model being served, for as long as some engine holds it.

Engines are handles. `Service.shared` finds the service of an equal configuration or loads it
once, however many threads ask; the last handle to go closes it. A forked child keeps the weights
it inherited and starts threads of its own at its first call.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from concurrent.futures import Future

from . import ending
from .batch_runner import BatchRunner
from .config import EngineConfig
from .errors import EngineClosed, EngineError, EngineFailed
from .info import EngineInfo
from .loop import Loop
from .models.resolve import resolve_checkpoint
from .models.spec import ModelSpec, read_spec
from .replicas import load_runner
from .scheduling.prefix_cache import PrefixCache
from .scheduling.scheduler import Scheduler

__all__ = ["Service"]


class Service:
    """A model, the runner that holds its weights, and the loop that serves it."""

    def __init__(
        self,
        spec: ModelSpec,
        runner: BatchRunner,
        config: EngineConfig,
        *,
        reloadable: bool = True,
    ) -> None:
        self.reloadable = reloadable  # whether the configuration is all it takes to load it again
        self.spec = spec
        self.runner = runner
        self.config = config
        # Under `_lock`, which a collected engine may take in the middle of anything: how many
        # engines hold the service, and which process the loop's threads are in.
        self._lock = threading.RLock()
        self._handles = 0
        self._process = os.getpid()
        self._loop = self._start_loop()
        _services.add(self)

    @classmethod
    def load(cls, config: EngineConfig) -> Service:
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
        return cls(spec, load_runner(spec, config), config)

    @classmethod
    def shared(cls, config: EngineConfig) -> Service:
        """The service of this configuration, acquired; loaded by the first to ask."""
        while True:
            with _registry_lock:
                loading = _registry.get(config)
                ours = loading is None
                if loading is None:
                    loading = _registry[config] = Future()
            if ours:
                _load_into(loading, config)
            service = loading.result()
            if service.loop.health == "failed":  # those who hold it keep it; others get a new one
                _unregister(config, loading)
                continue
            try:
                return service.acquire()
            except EngineClosed:  # the last holder let go in between
                _unregister(config, loading)

    def _start_loop(self) -> Loop:
        config, budget = self.config, self.runner.prefix_budget
        scheduler = Scheduler(
            self.runner.shapes,
            max_batch_tokens=self.runner.max_batch_tokens,
            max_queue_tokens=config.max_queue_tokens,
            max_query_wait_s=config.max_query_wait_ms / 1000,
            depth=self.runner.depth,
            workers=self.runner.workers,
            query_workers=self.runner.query_workers,
            min_short_batch_tokens=self.runner.min_batch_tokens,
            prefixes=None if budget is None else PrefixCache.of(budget),
            min_saved_tokens=0 if budget is None else budget.min_saved_tokens,
            max_prefixed_tokens=None if budget is None else budget.max_batch_tokens,
        )
        return Loop(self.runner, scheduler)

    @property
    def loop(self) -> Loop:
        """The running loop; in a forked child, one of its own from the first call on."""
        if self._process != os.getpid():
            with self._lock:
                if self._process != os.getpid():
                    self._require_forkable()
                    self._loop = self._start_loop()
                    self._process = os.getpid()
        return self._loop

    def _require_forkable(self) -> None:
        if "cuda" in self.runner.device_name:
            raise EngineFailed(
                "CUDA does not survive a fork: make the engine in the child, or start workers "
                "with the 'spawn' method"
            )

    def acquire(self) -> Service:
        """Hold the service for one more engine. Raises `EngineClosed` once it has been let go."""
        with self._lock:
            if self._handles < 0:
                raise EngineClosed("the engine is closed; make a new one")
            self._handles += 1
        return self

    def release(self, *, drain: bool = True, wait: bool = False) -> None:
        """Let go. With the last handle the loop stops: see `Loop.close`."""
        with self._lock:
            self._handles -= 1
            if self._handles > 0:
                return
            self._handles = -1
        with _registry_lock:
            loading = _registry.get(self.config)
        if loading is not None and loading.done() and loading.result() is self:
            _unregister(self.config, loading)
        self.stop(drain=drain, wait=wait)

    def stop(self, *, drain: bool, wait: bool) -> None:
        """Stop the loop, if it is this process's own."""
        if self._process == os.getpid():
            self._loop.close(drain=drain, wait=wait)

    def info(self) -> EngineInfo:
        """What is served and how."""
        return EngineInfo(
            model=self.spec,
            device=self.runner.device_name,
            dtype=self.runner.dtype_name,
            routes=tuple(self.runner.routes),
            max_batch_tokens=self.runner.max_batch_tokens,
            max_queue_tokens=self.config.max_queue_tokens,
            max_query_wait_ms=self.config.max_query_wait_ms,
            prefix_cache=self.runner.prefix_budget,
        )

    def after_fork_in_child(self) -> None:
        """The locks may be held by threads that stayed behind: replace them."""
        self._lock = threading.RLock()
        self._loop.abandon_in_child()

    def __repr__(self) -> str:
        return f"Service({self.spec.name!r}, handles={max(self._handles, 0)}, {self._loop!r})"


# Under `_registry_lock`: the shared services by configuration, in the making or made.
_registry_lock = threading.RLock()
_registry: dict[EngineConfig, Future[Service]] = {}
_services: weakref.WeakSet[Service] = weakref.WeakSet()


def _load_into(loading: Future[Service], config: EngineConfig) -> None:
    try:
        loading.set_result(Service.load(config))
    except Exception as error:
        _unregister(config, loading)
        loading.set_exception(error)
    except BaseException:  # an interrupt is for this thread, not for those that wait with it
        _unregister(config, loading)
        loading.set_exception(EngineError("loading the model was interrupted; try again"))
        raise


def _unregister(config: EngineConfig, loading: Future[Service]) -> None:
    with _registry_lock:
        if _registry.get(config) is loading:
            del _registry[config]


def _after_fork_in_child() -> None:
    global _registry_lock
    ending.forget_all()
    _registry_lock = threading.RLock()
    for config, loading in list(_registry.items()):
        if not loading.done():  # its loading thread stayed behind
            del _registry[config]
    for service in list(_services):
        service.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(ending.stop_all)
