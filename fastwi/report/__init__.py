"""Tables, figures and progress made of measurements."""
