"""An OpenAI-compatible endpoint for one model and any decoder. Imported only by ``exitlens serve``."""

from .app import create_app
from .limits import Limits, check_address

__all__ = ["Limits", "check_address", "create_app"]
