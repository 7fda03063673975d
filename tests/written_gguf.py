"""GGUF files of small models, as the converter of llama.cpp writes them."""

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    folder,
    path,
    architecture,
    keys=None,
    tensors=None,
    padding=0,
    end_ids=None,
    rope_freqs=None,
    without=(),
    split="default",
    merges=("Ġ a", "t h"),
    pieces=None,
):
    """Write a model folder's own GGUF file, with float32 weights, as llama.cpp's converter names and orders things.

    `keys` are further keys under the architecture's name, `padding` the number of [PAD…] tokens, `end_ids` the end ids
    by the last part of their key, `without` names keys that are left out, `split` is how the tokenizer cuts a text, and
    `merges` are the pairs of tokens that become one. `pieces` are the tokens of a SentencePiece vocabulary in place of
    the folder's, from the likeliest on, behind its three special ones and the 256 bytes.
    """
    import gguf
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if "rope.freq_base" not in (keys or {}):  # an older library refuses a key that comes twice
        writer.add_rope_freq_base(10000.0)
    if architecture == "llama":
        writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    names = [token for token, _ in vocabulary]
    kinds = [3 if index in tokenizer.all_special_ids else 1 for index in range(len(names))]
    if pieces is None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split)
        writer.add_token_list([*names, *(f"[PAD{len(names) + k}]" for k in range(padding))])
        writer.add_token_types([*kinds, *[5] * padding])
        writer.add_token_merges(list(merges))
    else:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces])
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(pieces)])
        writer.add_token_scores([0.0] * 259 + [-float(rank) for rank in range(len(pieces))])
    for key, index in ({"eos_token_id": tokenizer.eos_token_id} if end_ids is None else end_ids).items():
        writer.add_uint32(f"tokenizer.ggml.{key}", index)
    for key, value in (keys or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{architecture}.{key}", value)
    for name, parameter in model.state_dict().items():
        stem, leaf = name.rsplit(".", 1)
        weights = parameter.float().numpy()
        if stem.startswith("model.layers."):
            _, _, layer, part = stem.split(".", 3)
            stem = f"blk.{layer}.{GGUF_NAMES[part]}"
            if architecture == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if "q_proj" in part else config.num_key_value_heads
                halves = weights.reshape(heads, 2, len(weights) // heads // 2, -1).swapaxes(1, 2)
                weights = halves.reshape(weights.shape)
        elif stem == "lm_head" and config.tie_word_embeddings:
            continue
        else:
            stem = GGUF_NAMES[stem]
        writer.add_tensor(f"{stem}.{leaf}", np.ascontiguousarray(weights))
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", np.asarray(rope_freqs, dtype=np.float32))
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, np.asarray(value, dtype=np.float32))
    for key in without:
        del writer.kv_data[0][f"{architecture}.{key}"]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)
