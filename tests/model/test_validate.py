"""Parts of a model that do not fit together are refused with the keys to change."""

from __future__ import annotations

import pytest

from gnmt.errors import InputError
from gnmt.model.validate import check_shared_vocabulary


@pytest.mark.parametrize("tie_embeddings", ["source_target", "all"])
def test_one_table_for_two_tokenizers_is_refused(tie_embeddings):
    message = rf"^model\.tie_embeddings={tie_embeddings} .*tokenizers differ: use tokenizer\.joint=true, or .*=none"
    with pytest.raises(InputError, match=message):
        check_shared_vocabulary(tie_embeddings, joint=False)
    check_shared_vocabulary(tie_embeddings, joint=True)
    check_shared_vocabulary("target_output", joint=False)
