"""The workloads: every module here that has ``WORKLOADS`` adds its own to the suite."""

from __future__ import annotations

import importlib
import pkgutil

from bench.harness import Workload


def all_workloads() -> dict[str, Workload]:
    """Give the workloads by name, in the order of the report."""
    names = [module.name for module in pkgutil.iter_modules(__path__, f"{__name__}.")]
    modules = [importlib.import_module(name) for name in names]
    found = [workload for module in modules for workload in getattr(module, "WORKLOADS", ())]
    ordered = {workload.name: workload for workload in sorted(found, key=lambda w: w.number)}
    assert len(ordered) == len(found), "two workloads have one name"
    return ordered
