"""Studies on a real pretrained model (SmolLM2-135M-Instruct), over CounterFact facts it knows."""
