"""An OpenAI-compatible endpoint for one model and any decoder. Imported only by ``exitlens serve``."""

from exitlens.server.app import create_app
from exitlens.server.connections import make_server
from exitlens.server.limits import Limits, check_address

__all__ = ["Limits", "check_address", "create_app", "make_server"]
