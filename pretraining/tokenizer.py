"""The pocket world's tokenizer: one token a word or name, in the ordinary Hugging Face form, with a chat template."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mixdistill.data.chat import POCKET_TEMPLATE
from mixdistill.data.pocket import world

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
WORDS = ["?", "=", ".", ";", ":", "find", "try", "need", "ok", "no", "check", "wait", "after", "so", "answer"]
NAMES = [*world.COUNTS, *world.COLOURS, *world.MACHINES, *world.KINDS, *world.NUMBERS, *world.MARKS, *world.ITEMS]
CONTEXT = 256  # tokens; the longest problem with its longest trace has about 145


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer that all pocket students share."""
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS + NAMES)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=POCKET_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
