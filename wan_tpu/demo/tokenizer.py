"""The tokenizer of wan-tiny: whole words of the grammar, everything else unknown.

Word level rather than a trained subword model: 22 words need no merges, and the folder stays small.
Any text is accepted; a word outside the grammar becomes `<unk>`, which the training never shows to
the model.
"""

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from wan_tpu.demo import data

# The places that T5 and UMT5 give these three.
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
WORDS = (
    *("a", "an", "moving", "on", "background"),
    *data.COLORS,
    *data.SHAPES,
    *data.DIRECTIONS,
    *data.BACKGROUNDS,
)
TEXT_LENGTH = 512  # Wan's, which WanPipeline pads every prompt to
LONGEST_PROMPT = 10  # tokens of a caption of the grammar: nine words and the end


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, pad id 0, end id 1, unknown id 2."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL_TOKENS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # Runs of letters and digits; punctuation is dropped, so that "background." is "background".
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\p{L}\p{N}]+"), behavior="removed")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
        padding_side="right",
    )
