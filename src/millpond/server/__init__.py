"""The OpenAI-compatible server: an HTTP face on engines, for clients that are not Python.

`app.create_app` makes an ASGI application of engines that are already loaded; `process.run` serves
it until it is told to stop; `main.serve` is the command. Needs the extra `millpond[server]`.
"""
