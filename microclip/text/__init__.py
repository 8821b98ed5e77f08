"""The language side: prompts, class descriptions, and the class vectors made from them."""
