"""The HTTP layer: **request** → dialect → job → service → result → **response**. Imports no Ray."""
