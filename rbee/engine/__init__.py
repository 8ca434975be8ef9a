"""The engine process: takes submissions, runs the model step by step, publishes tokens. Never sees HTTP or text.

* process          start protocol, epoll loop, teardown, exit codes
* engine_core      step(): take -> schedule -> execute -> sample -> update -> publish
* sequence         one request's tokens, progress and blocks
* scheduler        who runs next, and for how many tokens
* block_manager    which KV blocks belong to whom, and what they hold that others can share
* step_cost        how many tokens of prompts a step can take beside running streams
* input_batch      the arrays of one step
* model_runner     what a runner is; how one is chosen and built
* context_length   how long a sequence may be
* native_runner    models of the Llama family on our own CPU kernels
* native_spec      what config.json says of such a model, or why it is none
* rope             the frequencies of its rotary embedding
* native_weights   which tensors it has, and the formats that hold them
* packed_weights   packed once, mapped afterwards
* torch_runner     any decoder-only transformers model over kv_cache
* torch_model      loading such a model
* torch_probe      refusing what kv_cache cannot do
* kv_cache         paged keys and values, and attention over them
* synthetic_runner a model without weights: fixed cadence, known tokens
* sampler          logits -> token ids and logprobs
* publisher        one transport commit per step

sequence, scheduler, block_manager and step_cost are plain Python: neither torch nor numpy.
"""
