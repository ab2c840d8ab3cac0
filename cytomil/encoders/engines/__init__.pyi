from .engine import Backend as Backend
from .engine import CompiledForm as CompiledForm
from .engine import Engine as Engine
from .select import open_engine as open_engine
from .select import open_same_engine as open_same_engine
