"""arena-distill: learn which of two chatbot answers people prefer, and distil slow judges into a fast one."""

__version__ = "0.1.0"
