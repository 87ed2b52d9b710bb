"""The OpenAI-compatible server: engines over HTTP.

`app.create_app` makes an ASGI application of loaded engines, `process.run` serves it,
`millpond.cli.serve` is the command. Needs the extra `millpond[server]`.
"""
