"""EasyEdit's ROME interface: its code runs with only the import line changed.

    >>> from rome_fast.easyedit import BaseEditor, ROMEHyperParams
    >>> hparams = ROMEHyperParams.from_hparams("./hparams/ROME/gpt2")
    >>> editor = BaseEditor.from_hparams(hparams)
    >>> metrics, edited_model, _ = editor.edit(
    ...     prompts=["Ray Charles, the"], ground_truth=["piano"],
    ...     target_new=["violin"], subject=["Ray Charles"])

Names, arguments and the metrics dictionary are EasyEdit's. What differs, and why:

- The returned model is edited, always, with every request of the call. EasyEdit writes the
  original weights back after each edit unless ``sequential_edit=True``, and returns that model.
  Here ``sequential_edit`` only says what "post" is measured on (``BaseEditor.edit_requests``).
- ``keep_original_weight=True``, which EasyEdit accepts and ignores, leaves ``editor.model`` as it
  is and returns a second model that shares every tensor with it but the edited weight.
- ``weights_copy`` is the weight from before the call, however many edits were made in it.
- ``mom2_adjustment: false`` means that the second moment is the identity, and each call warns of
  it. With true it comes from ``second_moment=`` of the editor, else from a file in ``stats_dir``,
  else from ordinary text of the package; nothing is downloaded (``ROMEHyperParams``).
- ``editor.results`` holds what the weights say after the edit, the warnings and ``revert()``.
- Updates are solved with ``variant="both_keys"``; ``variant="original"`` in the settings gives
  EasyEdit's own. Contexts are sampled with ``seed`` and belong to the call.
- A target gets one space before it, or none where it brings one or its script has none.
- Errors are typed and leave every bit as it was. No folder of logs is made, no seed is set, and
  nothing is printed with ``verbose=False``.
"""

from rome_fast.easyedit.editor import BaseEditor
from rome_fast.easyedit.hparams import ROMEHyperParams

__all__ = ["BaseEditor", "ROMEHyperParams"]
