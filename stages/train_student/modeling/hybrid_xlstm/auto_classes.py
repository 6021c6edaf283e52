"""Importing this registers the student with ``AutoConfig`` and ``AutoModelForCausalLM``.

They then load it with these classes, and run no code of a model directory. A directory carries the
classes without this: two directories would register two of them.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from stages.train_student.modeling.hybrid_xlstm.configuration import HybridXLSTMConfig
from stages.train_student.modeling.hybrid_xlstm.modeling import HybridXLSTMForCausalLM

AutoConfig.register(HybridXLSTMConfig.model_type, HybridXLSTMConfig)
AutoModelForCausalLM.register(HybridXLSTMConfig, HybridXLSTMForCausalLM)
