"""Where OpenAI's own schema of its API lies; it stands beside some checkouts only."""

from pathlib import Path

CONTRACT = Path(__file__).parents[3] / "shared" / "contracts" / "openai-openapi.json"
