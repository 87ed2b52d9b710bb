"""What parameters of LangChain's other classes are called here, as docs/integrations.md says."""

from __future__ import annotations

__all__ = ["OF_EMBEDDINGS", "OF_RERANKERS"]

_PROMPTS = (
    "document_prompt; and query_prompt if query_encode_kwargs was empty, since it then applied to "
    "queries too"
)
_NO_BACKEND = "none; set HF_TOKEN and HF_HUB_OFFLINE as for any Hugging Face library"
_NO_BATCH_SIZE = (
    'none: batches are sized in tokens; engine_options={"max_batch_tokens": …} bounds them'
)

OF_EMBEDDINGS = {
    "model_kwargs": "its entries are parameters of their own",
    "encode_kwargs": "its entries are parameters of their own",
    "query_encode_kwargs": "its entries are parameters of their own",
    "multi_process": "not needed: threads share one engine, and device takes several",
    "backend": "none: the model runs in PyTorch",
    "batch_size": _NO_BATCH_SIZE,
    'model_kwargs["device"]': "device",
    'model_kwargs["revision"]': "revision, trust_remote_code",
    'model_kwargs["trust_remote_code"]': "revision, trust_remote_code",
    'model_kwargs["prompts"]': "query_prompt, document_prompt: the texts themselves",
    'model_kwargs["default_prompt_name"]': "query_prompt and document_prompt, both with that "
    "prompt's text",
    'model_kwargs["truncate_dim"]': "dimensions, which also restores unit length",
    'model_kwargs["model_kwargs"]': 'dtype; "auto" by default',
    'model_kwargs["backend"]': _NO_BACKEND,
    'model_kwargs["token"]': _NO_BACKEND,
    'model_kwargs["local_files_only"]': _NO_BACKEND,
    'encode_kwargs["prompt"]': _PROMPTS,
    'encode_kwargs["prompt_name"]': _PROMPTS,
    'query_encode_kwargs["prompt"]': "query_prompt",
    'query_encode_kwargs["prompt_name"]': "query_prompt",
    'encode_kwargs["normalize_embeddings"]': "normalize",
    'query_encode_kwargs["normalize_embeddings"]': "normalize",
    'encode_kwargs["batch_size"]': _NO_BATCH_SIZE,
    'encode_kwargs["truncate_dim"]': "dimensions",
    'encode_kwargs["precision"]': "none: stores take floats; Engine.embed(output_dtype=…) "
    "quantises",
}
OF_RERANKERS = {
    "model_kwargs": "its entries are parameters of their own",
    "backend": "none: the model runs in PyTorch",
    "batch_size": _NO_BATCH_SIZE,
    **{
        f'model_kwargs["{name}"]': "device, trust_remote_code, revision, max_length"
        for name in ("device", "trust_remote_code", "revision", "max_length")
    },
    'model_kwargs["activation_fn"]': 'activation, by name: "none" for torch.nn.Identity(), '
    '"sigmoid"',
}
