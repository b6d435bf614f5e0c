"""Plain nn.Modules. Nothing here knows of populations. Importing this package does not import torch."""
