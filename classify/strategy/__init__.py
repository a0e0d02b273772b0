"""Which of the four strategies a task asks for, with the evidence; and carrying it out."""
