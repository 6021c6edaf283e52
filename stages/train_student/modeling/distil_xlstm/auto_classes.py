"""Importing this registers the student with ``AutoConfig`` and ``AutoModelForCausalLM``.

They then load it with these classes, and run no code of a model directory. A directory carries the
classes without this: two directories would register two of them.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from stages.train_student.modeling.distil_xlstm.configuration import DistilXLSTMConfig
from stages.train_student.modeling.distil_xlstm.modeling import DistilXLSTMForCausalLM

AutoConfig.register(DistilXLSTMConfig.model_type, DistilXLSTMConfig)
AutoModelForCausalLM.register(DistilXLSTMConfig, DistilXLSTMForCausalLM)
