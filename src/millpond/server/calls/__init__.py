"""A request as a call of an engine: its body read, the engine asked, the response written."""
