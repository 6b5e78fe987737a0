"""Store of a device: installed releases of a bundle, the pointer to the active release, and the health of a new release."""

from edgetl.core.store.probation import Start, starts
from edgetl.core.store.releases import Release, active_release, is_store
from edgetl.core.store.state import StoreState

__all__ = ["Release", "Start", "StoreState", "active_release", "is_store", "starts"]
