"""Image-to-image translation: generators and discriminators, their training, and applying them."""
