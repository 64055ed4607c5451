"""The routes of OpenAI's interface (`/v1/…`), over a pipeline of this process or over a cluster."""
