import sys
from pathlib import Path

# The kit is also what Ray's actors import by name.
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
